// The API's documentation: Swagger UI, in the colours that the system asks for.

const dark = matchMedia('(prefers-color-scheme: dark)');

function paint() {
  document.documentElement.classList.toggle('dark-mode', dark.matches);
}

dark.addEventListener('change', paint);
paint();

const docs = document.getElementById('docs');

window.SwaggerUIBundle({
  url: docs.dataset.document,
  domNode: docs,
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  // Asked of another host otherwise.
  validatorUrl: null,
});
