"""Making a backbone: models trained from scratch under the losses and heads whose collapse the paper compares."""
