"""What a node refuses, as exceptions. Every failed call carries a refusal: what, why and what to try; programs tell refusals
apart by class or by `reason`. Not here: when to try again, which is the caller's choice."""

from __future__ import annotations

import grpc
from google.rpc import status_pb2

from cairn.v1 import cairn_pb2 as pb

_DETAILS = "grpc-status-details-bin"


class CairnError(Exception):
    """A call failed. `reason` is a word of the refusal table, e.g. "no_grant"; `try_` may be empty."""

    def __init__(self, reason: str, what: str, why: str, try_: str = "") -> None:
        self.reason, self.what, self.why, self.try_ = reason, what, why, try_
        told = f"{what}: {why}" if what else why
        super().__init__(f"{told} (try: {try_})" if try_ else told)


class BadInput(CairnError):
    """The request is malformed."""


class NotFound(CairnError):
    """No such repo, ref, revision or file."""


class Refused(CairnError):
    """Not permitted: trust, grants, limits, or a missing token."""


class Unavailable(CairnError):
    """No node that could do it is there now, or time ran out."""


class Failed(CairnError):
    """It was tried and did not work."""


REASONS: dict[str, type[CairnError]] = {
    "bad_input": BadInput,
    "not_found": NotFound,
    "ambiguous": Refused,
    "exists": Refused,
    "no_grant": Refused,
    "no_memory": Refused,
    "too_slow": Unavailable,
    "unreachable": Unavailable,
    "wrong_instruction_set": Unavailable,
    "busy": Unavailable,
    "privacy": Refused,
    "unsupported": Refused,
    "token_required": Refused,
    "host_refused": Refused,
    "limit": Refused,
    "untrusted": Refused,
    "corrupt": Failed,
    "no_holder": Unavailable,
    "deadline": Unavailable,
    "cancelled": Failed,
    "internal": Failed,
    "disk_full": Failed,
    "conflict": Failed,
    "bad_signature": Refused,
    "policy": Refused,
    "unsafe_files": Refused,
    "too_few_nodes": Unavailable,
    "unavailable": Unavailable,
}
"""The class of each reason; the same split as the command line's exit codes."""

_CODES: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "bad_input",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.ALREADY_EXISTS: "exists",
    grpc.StatusCode.PERMISSION_DENIED: "no_grant",
    grpc.StatusCode.UNAUTHENTICATED: "token_required",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "limit",
    grpc.StatusCode.UNIMPLEMENTED: "unsupported",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.ABORTED: "conflict",
}


def from_rpc(error: grpc.RpcError, api: str) -> CairnError:
    """The exception for a failed call to the daemon at `api`."""
    return _from_details(error) or _from_code(error, api)


def _from_details(error: grpc.RpcError) -> CairnError | None:
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS:
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                refusal = pb.Refusal()
                if detail.Unpack(refusal):
                    return _named(refusal.reason, refusal.what, refusal.why, getattr(refusal, "try"))
        except Exception:  # noqa: BLE001  Details that can't be read are as good as none; the status code remains.
            return None
    return None


def _from_code(error: grpc.RpcError, api: str) -> CairnError:
    code = error.code()
    if code == grpc.StatusCode.UNAVAILABLE:
        return Unavailable("unavailable", api, "no daemon answers there", "cairn node")
    return _named(_CODES.get(code, "internal"), "", error.details() or code.name.lower(), "")


def _named(reason: str, what: str, why: str, try_: str) -> CairnError:
    return REASONS.get(reason, Failed)(reason, what, why, try_)
