"""Hugging Face Trainers that unlearn and finetune, and what a run is set up from."""
