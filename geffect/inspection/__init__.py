"""Checkpoints that somebody trained: a series of them becomes the record a run writes, without training."""

from geffect.inspection.completing import completed
from geffect.inspection.inspecting import inspect
from geffect.inspection.places import Place, places, readable
from geffect.inspection.planning import plan_inspection
from geffect.inspection.tasks import record_of

__all__ = ["Place", "completed", "inspect", "places", "plan_inspection", "readable", "record_of"]
