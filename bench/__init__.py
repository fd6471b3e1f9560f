"""Measurements. results/ holds their JSON files, report.py draws them into README and docs."""
