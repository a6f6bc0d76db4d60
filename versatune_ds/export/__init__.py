"""Write a run's model as a Hugging Face folder."""
