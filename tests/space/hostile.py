"""Titles that would run if they were taken for HTML, for one of Gradio's templates, or for JavaScript."""

HOSTILE = [
    "<img src=x onerror='window.attacked=1'> Tea Towel",
    "${window.attacked=1} {{value}} Garden Gloves",
    "`+(window.attacked=1)+` \"quoted\" & 'single' </section><script>window.attacked=1</script> Cookbook",
]
HOSTILE_DOMAINS = ["Kitchen", "Garden", "Books"]
