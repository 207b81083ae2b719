"""Versions, promotion, model cards, the model for whole videos."""
