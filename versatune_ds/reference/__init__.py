"""Measure reference losses: fine-tune the base model on each domain alone, or score a given model."""
