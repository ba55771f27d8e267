"""Making a backbone: networks trained from scratch under the losses and heads whose collapse the paper compares."""
