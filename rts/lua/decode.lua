-- Decodes JSON that Python has written. A library, prepended to other scripts.
--
-- Returns the table, and whether it has "?" in place of surrogates; false for anything else.
-- cjson rejects lone surrogates, which Python writes, for example of a file name that is not
-- UTF-8.

local function decoded(json)
  local fine, value = pcall(cjson.decode, json)
  local replaced = not fine
  if replaced then
    fine, value = pcall(cjson.decode, (string.gsub(json, '\\u[dD][89a-fA-F]%x%x', '?')))
  end
  return fine and type(value) == 'table' and value, replaced
end
