"""What a person asks for, in one call each."""
