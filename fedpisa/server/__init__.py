"""The server: Flower strategies around an algorithm, and checks of replies."""
