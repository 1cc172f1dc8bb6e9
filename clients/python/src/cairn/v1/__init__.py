"""Generated from cairn/v1/cairn.proto by `clients/python/generate`; not written by hand."""
