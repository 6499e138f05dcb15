"""One look for all pictures: plots, learning curve, diagrams."""

# Told apart by colour-blind readers too (Okabe and Ito).
BLUE, VERMILLION, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7"
INK, GREY = "#1F2933", "#6B7785"

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is there on every machine
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "tutorial",  # the same picture is the same bytes
}
