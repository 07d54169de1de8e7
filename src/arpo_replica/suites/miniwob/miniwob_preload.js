// Loads the icons that a page's style sheets name, so that the page is drawn whole at once when its
// episode starts. Called as (function)(); a promise.
() => {
  window.arpoImages = [];
  for (const sheet of document.styleSheets) {
    for (const rule of sheet.cssRules) {
      for (const [, path] of rule.cssText.matchAll(/url\("([^"]+)"\)/g)) {
        const image = new Image();
        image.src = new URL(path, sheet.href || location.href);
        window.arpoImages.push(image);
      }
    }
  }
  return Promise.all(window.arpoImages.map((image) => image.decode()));
}
