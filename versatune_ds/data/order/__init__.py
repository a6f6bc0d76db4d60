"""Plan which examples go into which rows of which step: order, draws by mixture, packing, the plan of a batch."""
