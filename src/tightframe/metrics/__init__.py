"""What the numbers say: collapse, scores, probes, and which layer they recommend."""
