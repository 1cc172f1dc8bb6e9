"""Python client of a Cairn node.

    import cairn

    with cairn.connect() as node:
        for token in node.generate("acme/tiny", "Once upon a time", max_tokens=64):
            print(token.text, end="", flush=True)
"""

from cairn.client import Client, connect
from cairn.embedding import Embeddings, Lost
from cairn.errors import BadInput, CairnError, Failed, NotFound, Refused, Unavailable
from cairn.generation import Generation
from cairn.statements import (
    Advisory, Attestation, Difference, Edge, FileChange, Lineage, Measurement, PastRevision, Place, Publisher, TensorChange,
)
from cairn.types import (
    Adapter, Bundled, Capacity, Card, CardProblem, DeathOutcome, File, Found, FoundRepo, Gpu, Grants, Likely, Model, Peer, Plan, Progress, Published, Pulled, Recovery, Ref,
    RejectedNode, Repo, RepoDetails, Resolved, Result, Scanned, ScannedFile, StagePlan, StageReport, Started, Status, Token, Verified,
)

__version__ = "0.1.0"

__all__ = [
    "Adapter", "Advisory", "Attestation", "Difference", "Edge", "FileChange", "Lineage", "Measurement", "PastRevision", "Place",
    "Publisher", "TensorChange", "BadInput", "Bundled", "CairnError", "Capacity", "Card", "CardProblem", "Client", "DeathOutcome", "Embeddings", "Failed", "File", "Found", "FoundRepo", "Generation", "Gpu",
    "Grants", "Likely", "Lost", "Model", "NotFound", "Peer", "Plan", "Progress", "Published", "Pulled", "Recovery", "Ref", "Refused",
    "RejectedNode", "Repo", "RepoDetails", "Resolved", "Scanned", "ScannedFile", "Result", "StagePlan", "StageReport", "Started", "Status",
    "Token", "Unavailable", "Verified", "connect",
]
