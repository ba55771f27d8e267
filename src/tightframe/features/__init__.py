"""Images × backbone → numbers: the one pass, and the statistic it leaves."""
