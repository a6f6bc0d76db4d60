"""Build the model a recipe names, choose what is trained, check that its losses can be computed our way."""
