"""Compare policies: the same base model, data, budget and schedule, several seeds, test rows never trained on."""
