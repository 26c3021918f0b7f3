"""The two embedded models, trained on easy-VQA; `python -m ressa.models.pocket` repeats it."""
