"""How the miniature's models were made: one file per kind of model, one training loop for all."""
