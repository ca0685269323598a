// Equations, on every page that the theme shows without loading it anew.
document$.subscribe(({ body }) => renderMathInElement(body, { throwOnError: true }))
