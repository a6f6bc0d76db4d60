"""The length of a run: steps or epochs, more steps for a run that has begun, updates that come too late to act."""
