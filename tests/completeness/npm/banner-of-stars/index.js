module.exports = (text) => `*** ${text} ***`;
