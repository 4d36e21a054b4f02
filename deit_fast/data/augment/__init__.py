"""What is drawn for each view, and the DALI graphs and device functions that apply it."""
