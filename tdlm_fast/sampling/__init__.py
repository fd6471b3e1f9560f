"""Write text with a trained model."""
