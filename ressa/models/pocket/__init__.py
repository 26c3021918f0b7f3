"""The two embedded models, trained from scratch on easy-VQA; `python -m ressa.models.pocket` repeats it."""
