"""EdgeID: verify people by face and voice, on the device, offline."""

from edgeid.identity import EdgeID
from edgeid.keys import MasterKey
from edgeid.policy import Policy
from edgeid.results import Candidate, EnrollResult, IdentifyResult, Reason, User, VerifyResult
from edgeid.runtime.errors import EdgeIDError, InputError, ModelError, QualityError, StoreError
from edgeid.store import TemplateStore
from edgeid.version import __version__

__all__ = [
    "Candidate",
    "EdgeID",
    "EdgeIDError",
    "EnrollResult",
    "IdentifyResult",
    "InputError",
    "MasterKey",
    "ModelError",
    "Policy",
    "QualityError",
    "Reason",
    "StoreError",
    "TemplateStore",
    "User",
    "VerifyResult",
    "__version__",
]
