"""What becomes of the checks: verdicts, score, and pages for people and machines."""
