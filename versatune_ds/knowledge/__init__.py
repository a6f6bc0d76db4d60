"""Find out what a base model knows before it is fine-tuned (METHOD.md section 1)."""
