"""The rows of the table, a module for each family. A contestant imports its rival itself: workers import these too."""
