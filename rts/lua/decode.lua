-- Decodes JSON that Python has written. A library, prepended to other scripts.
--
-- Returns the table, and whether it has "?" in place of surrogates; false for anything else.
-- cjson rejects lone surrogates, which Python writes, for example of a file name that is not
-- UTF-8.

-- "\\ud800" is none, but an escaped backslash and text.
local function without_surrogate(escaped, code)
  if escaped == 'u' and string.find(code, '^[dD][89a-fA-F]') then return '?' end
end

local function decoded(json)
  if string.find(json, '\0', 1, true) then return false end -- where cjson stops reading
  local fine, value = pcall(cjson.decode, json)
  local replaced = not fine
  if replaced then
    json = string.gsub(json, '\\(.)(%x?%x?%x?%x?)', without_surrogate)
    fine, value = pcall(cjson.decode, json)
  end
  return fine and type(value) == 'table' and value, replaced
end
