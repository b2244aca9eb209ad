"""The study: models with several numbers of heads, trained, measured and judged by one command."""

from .config import STUDIES, Study, StudyConfig, study
from .folder import is_study, read_study
from .loop import StudyObserver, resume_study, run_study
from .measurement import Measurement
from .progress import StudyBar
from .results import LoadedStudy, StudyError, load_study
from .single import assess, probe, prune

__all__ = [
    "STUDIES",
    "LoadedStudy",
    "Measurement",
    "Study",
    "StudyBar",
    "StudyConfig",
    "StudyError",
    "StudyObserver",
    "assess",
    "is_study",
    "load_study",
    "probe",
    "prune",
    "read_study",
    "resume_study",
    "run_study",
    "study",
]
