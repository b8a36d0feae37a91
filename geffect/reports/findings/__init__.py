"""What came of a run, and what it shows beyond noise, with intervals."""
