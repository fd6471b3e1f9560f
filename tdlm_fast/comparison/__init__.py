"""Train the arms of a comparison, read their figures, judge the claims and draw the report. No torch at import."""
