"""Train the face, voice and landmark networks from data."""
