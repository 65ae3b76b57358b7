module.exports = require("./built/phrases.json");
