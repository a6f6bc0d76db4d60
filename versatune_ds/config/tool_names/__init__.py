"""Settings of other fine-tuning tools, and the key that each is here: one file a part of a recipe."""
