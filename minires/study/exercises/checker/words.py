"""The phrases that all kinds of exercises share: blanks, shapes in letters, options."""


def blank(method):
    """The line that a student replaces."""
    return f'raise NotImplementedError("{method} is blank: write it here")'


BLANK = blank("backward")


def describe(option, value):
    """An option of a case in words: "stride 2", and "training" or "evaluation" for the mode."""
    return ("training" if value else "evaluation") if option == "training" else f"{option} {value}"


def shape(letters):
    """The letters "N C" as "(N, C)", "C" as "(C,)"."""
    names = letters.split()
    return f"({names[0]},)" if len(names) == 1 else f"({', '.join(names)})"


def indent(text):
    """Every line four places to the right."""
    return "\n".join(f"    {line}".rstrip() for line in text.strip("\n").splitlines())


def imports_first(code, name):
    """The code with the line that names the exercise between its imports and what follows them."""
    imports, mark, rest = code.strip("\n").partition("\n\n\n")
    return f'{imports}\n\nEXERCISE = "{name}"{mark}{rest}\n'
