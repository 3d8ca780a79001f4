"""AI driver for models of PyTorch Hub. Light: the processes of the models import it, too."""
