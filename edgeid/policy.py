"""Which evidence may open the door."""

from __future__ import annotations

from dataclasses import dataclass

from edgeid.results import Modality


@dataclass(frozen=True)
class Policy:
    """What a decision may rest on.

    Face and voice together are always allowed. When both are handed in and one of them is not
    good enough, nothing falls back to the other: the QualityError is raised, so that nobody
    can choose the easier half by spoiling the harder one.

    Attributes:
        face_alone: a face without a voice may be accepted.
        voice_alone: a voice without a face may be accepted. NIST SP 800-63B-4 (section
            3.2.3) rules out voice as a biometric that is compared on its own, since speech is
            easily recorded and synthesised; switching this on does not conform.
    """

    face_alone: bool = True
    voice_alone: bool = False

    def allows(self, modality: Modality) -> bool:
        """Whether a decision may rest on ``modality``."""
        return {"fused": True, "face": self.face_alone, "voice": self.voice_alone}[modality]
