// A click on one of the library's cards becomes the widget's event, with the asset's uid.
element.addEventListener('click', (event) => {
  const card = event.target.closest('[data-uid]');
  if (card) trigger('click', {uid: card.dataset.uid});
});
