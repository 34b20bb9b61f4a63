"""What every bench needs: turns taken in rounds, figures and goals, facts about the machine, tables, plots, results."""
