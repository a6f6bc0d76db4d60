"""Language models as labellers: the question they are asked, their answers, and where those are kept."""
