"""What a recipe did, for people and programs: ``report.html`` and ``report.json``."""
