"""Evaluate a model on every domain: held-out losses, written answers, multiple choice, and what it forgot."""
