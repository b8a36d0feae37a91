"""One optimiser step: losses → rows → Gram → rectified gradient → what the optimiser made of it."""

from geffect.measurement.basis import Basis
from geffect.measurement.run import Batch, Measured, Measurement
from geffect.measurement.spread import Spread
from geffect.measurement.step import Step

__all__ = ["Basis", "Batch", "Measured", "Measurement", "Spread", "Step"]
