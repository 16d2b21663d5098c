"""From the folders of runs to tables, figures and one page of HTML."""
