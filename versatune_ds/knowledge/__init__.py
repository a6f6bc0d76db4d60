"""Find out what a base model knows before it is fine-tuned (docs/method.md section 1)."""
