"""What is wrong with images, labels and splits, found before anything is trained."""
