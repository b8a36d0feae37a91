"""Hugging Face Trainers that unlearn and that fit, and hand every step's numbers to whoever records them."""

from geffect.training.diagnostics import Diagnostics
from geffect.training.fit import FitTrainer
from geffect.training.recording import RecordingTrainer
from geffect.training.unlearn import UnlearnTrainer

__all__ = ["Diagnostics", "FitTrainer", "RecordingTrainer", "UnlearnTrainer"]
